import numpy as np
import pytest

from jaxar.metrics.inception_score import even_splits, inception_score, splits_of_size


def test_sure_and_diverse_predictions_score_the_number_of_classes():
    logits = np.tile(1e4 * np.eye(5, dtype=np.float32), (3, 1))
    assert inception_score(logits, splits_of_size(15)) == pytest.approx([5.0])


def test_one_prediction_for_all_scores_one():
    assert inception_score(np.tile(np.array([[3.0, 1.0]]), (8, 1)), even_splits(8, 2)) == pytest.approx([1.0, 1.0])


def test_splits_cover_each_image_once():
    assert splits_of_size(7, 3) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert even_splits(7, 3) == [slice(0, 2), slice(2, 4), slice(4, 7)]
