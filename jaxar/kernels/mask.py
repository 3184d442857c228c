"""Attention structure as key ranges per query, so that kernels skip blocks and no dense mask is built.

Two layers. `MaskSpec` is static and hashable: it is known when a program is traced, so attention can be cut into
unmasked pieces and kernels can leave out blocks. `DynamicRanges` is a pytree of traced ranges, for what only the data
knows: cache lengths, padding, draft trees. `&` intersects either with the other.

Queries are numbered 0..num_queries-1 and keys 0..kv_len-1; all ranges are half-open. A query may have no keys at all;
its attention output is zero.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.kernels.runs import KeyRange, Run, behind, canonical, check, fixed, intersect
from jaxar.typing import Array, Bool, Int, typechecked


@dataclasses.dataclass(frozen=True)
class MaskSpec:
    """Which keys each query attends, as runs of queries under one rule; a causal mask of any length is a single run.

    Attributes:
      runs: consecutive runs that cover all queries.
      kv_len: number of keys.
    Raises:
      ValueError: runs with gaps, or key ranges that are empty, out of order or outside the keys.
    """

    runs: tuple[Run, ...]
    kv_len: int

    def __post_init__(self):
        check(self.runs, self.kv_len)

    @staticmethod
    def full(num_queries: int, kv_len: int | None = None) -> "MaskSpec":
        """Every query attends every key; as many keys as queries by default."""
        kv_len = num_queries if kv_len is None else kv_len
        return MaskSpec((Run(0, num_queries, (fixed(0, kv_len),)),), kv_len)

    @staticmethod
    def causal(length: int) -> "MaskSpec":
        """A query attends itself and all earlier positions."""
        return MaskSpec.window(length, length)

    @staticmethod
    def window(length: int, size: int) -> "MaskSpec":
        """A query attends the last `size` positions, its own included."""
        return _clipped([Run(0, length, (behind(size - 1),))], length)

    @staticmethod
    def prefix(prefix_len: int, length: int) -> "MaskSpec":
        """The first `prefix_len` positions attend one another in both directions; later ones are causal."""
        runs = [Run(0, prefix_len, (fixed(0, prefix_len),)), Run(prefix_len, length, (behind(length),))]
        return _clipped(runs, length)

    @staticmethod
    def block_causal(lengths: Sequence[int]) -> "MaskSpec":
        """Consecutive blocks (scales) of the given lengths; a query attends its own block and all earlier ones.

        Reference: Tian et al., Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale Prediction,
        2024.
        """
        return _blocks(lengths, lambda start, stop: fixed(0, stop))

    @staticmethod
    def earlier_blocks_and_self(lengths: Sequence[int]) -> "MaskSpec":
        """Consecutive blocks (scales) of the given lengths; a query attends all earlier blocks and itself.

        Reference: Liu et al., Distilled Decoding 1: One-step Sampling of Image Auto-regressive Models with Flow
        Matching, 2025.
        """
        stops = list(itertools.accumulate(lengths, initial=0))
        runs = [Run(a, b, (fixed(0, a), behind(0))) for a, b in itertools.pairwise(stops)]
        return _clipped(runs, stops[-1])

    @staticmethod
    def block_diagonal(lengths: Sequence[int]) -> "MaskSpec":
        """Consecutive blocks (scales) of the given lengths; a query attends its own block alone.

        Reference: Kumbong et al., HMAR: Efficient Hierarchical Masked Auto-Regressive Image Generation, 2025.
        """
        return _blocks(lengths, fixed)

    @staticmethod
    def cells(num_cells: int, cell_len: int) -> "MaskSpec":
        """Cells of equal length whose tokens are consecutive; a query attends its own cell and all earlier ones.

        Reference: Ren et al., Beyond Next-Token: Next-X Prediction for Autoregressive Visual Generation, 2025.
        """
        return MaskSpec.block_causal((cell_len,) * num_cells)

    @staticmethod
    def clean_noisy(lengths: Sequence[int], prefix_len: int = 0) -> "MaskSpec":
        """Positions are [prefix | clean blocks | noisy blocks]: all blocks are trained in one pass.

        Args:
          lengths: tokens per block; the noisy copy of a block is as long as the clean one.
          prefix_len: condition tokens, which attend one another and are seen by all.
        Returns:
          A clean block attends the clean blocks up to itself; a noisy block attends the clean blocks before it and
          itself, which makes two ranges.
        """
        half = sum(lengths)
        stops = list(itertools.accumulate(lengths, initial=prefix_len))
        blocks = list(itertools.pairwise(stops))
        prefix = Run(0, prefix_len, (fixed(0, prefix_len),))
        clean = [Run(a, b, (fixed(0, b),)) for a, b in blocks]
        noisy = [Run(half + a, half + b, (fixed(0, a), fixed(half + a, half + b))) for a, b in blocks]
        return _clipped([prefix, *clean, *noisy], prefix_len + 2 * half)

    @property
    def num_queries(self) -> int:
        return self.runs[-1].stop

    @property
    def is_full(self) -> bool:
        return self == MaskSpec.full(self.num_queries, self.kv_len)

    @property
    def is_causal(self) -> bool:
        return self == MaskSpec.causal(self.kv_len)

    def __and__(self, other: "MaskSpec") -> "MaskSpec":
        """The keys that both masks allow."""
        if not isinstance(other, MaskSpec):
            return NotImplemented
        if (self.num_queries, self.kv_len) != (other.num_queries, other.kv_len):
            raise ValueError(
                f"masks of {self.num_queries} queries, {self.kv_len} keys and of {other.num_queries} queries, "
                f"{other.kv_len} keys cannot be intersected; cut one with rows()"
            )
        runs: list[Run] = []
        for a, b in itertools.product(self.runs, other.runs):
            start, stop = max(a.start, b.start), min(a.stop, b.stop)
            if start < stop:
                runs += intersect(start, stop, itertools.product(a.keys, b.keys))
        return MaskSpec(canonical(runs), self.kv_len)

    def rows(self, first: int, count: int) -> "MaskSpec":
        """The mask of queries first..first+count-1 alone, over the same keys."""
        if first < 0 or count < 1 or first + count > self.num_queries:
            raise ValueError(f"queries {first}..{first + count - 1} are not among the {self.num_queries} of the mask")
        runs = []
        for run in self.runs:
            start, stop = max(run.start, first), min(run.stop, first + count)
            if start < stop:
                keys = tuple((a.renumbered(first), b.renumbered(first)) for a, b in run.keys)
                runs.append(Run(start - first, stop - first, keys))
        return MaskSpec(tuple(runs), self.kv_len)

    @typechecked
    def rows_at(self, first: Int[Array, "*b"] | int, count: int) -> "DynamicRanges":
        """The ranges of queries first..first+count-1 where only the data knows `first`: a decode step.

        Args:
          first: position of the first query, one per batch row or shared; first + count <= num_queries.
          count: static number of queries.
        """
        position = jnp.asarray(first)[..., None, None] + jnp.arange(count)  # [*b, 1, t]
        width = self._num_ranges
        unused = (fixed(0, 0),)
        rules = np.array([run.keys + unused * (width - len(run.keys)) for run in self.runs], np.int32)
        index = sum(((position >= run.start).astype(jnp.int32) for run in self.runs[1:]), jnp.zeros_like(position))
        rule = jnp.asarray(rules)[index, jnp.arange(width)[:, None]]  # [*b, r, t, (start, stop), (offset, follows)]
        ends = rule[..., 0] + rule[..., 1] * position[..., None]
        return DynamicRanges(ends[..., 0], ends[..., 1])

    def used_keys(self) -> tuple[tuple[tuple[int, int], ...], "MaskSpec | None"]:
        """Which keys any query attends, and the same mask over those keys alone.

        Returns:
          Ascending disjoint ranges of keys, and the mask over their concatenation: None if no query has a key.
        """
        spans: list[tuple[int, int]] = []
        for start, stop in sorted(run.hull(keys) for run in self.runs for keys in run.keys):
            if spans and start <= spans[-1][1]:
                start, stop = spans[-1][0], max(stop, spans.pop()[1])
            spans.append((start, stop))
        if not spans:
            return (), None
        places = list(itertools.accumulate((stop - start for start, stop in spans), initial=0))

        def moved(run: Run, keys: KeyRange) -> KeyRange:
            first, last = run.hull(keys)
            move = next(place - start for place, (start, stop) in zip(places, spans) if start <= first and last <= stop)
            return tuple(edge._replace(offset=edge.offset + move) for edge in keys)

        runs = (run._replace(keys=tuple(moved(run, keys) for keys in run.keys)) for run in self.runs)
        return tuple(spans), MaskSpec(canonical(runs), places[-1])

    @property
    def _num_ranges(self) -> int:
        return max(1, *(len(run.keys) for run in self.runs))

    def ranges(self) -> tuple[np.ndarray, np.ndarray]:
        """First key and key past the last one per query, int32 [r, t] each; unused ranges are (0, 0)."""
        start, stop = np.zeros((2, self._num_ranges, self.num_queries), np.int32)
        for run in self.runs:
            queries = np.arange(run.start, run.stop)
            for r, (a, b) in enumerate(run.keys):
                start[r, queries] = a.offset + a.follows * queries
                stop[r, queries] = b.offset + b.follows * queries
        return start, stop

    def dense(self) -> np.ndarray:
        """The mask as booleans [t, s], True where attended: for oracles and pictures."""
        start, stop = self.ranges()
        keys = np.arange(self.kv_len)
        return ((start[..., None] <= keys) & (keys < stop[..., None])).any(0)

    def visited_blocks(self, block_t: int, block_s: int) -> np.ndarray:
        """Bool [t blocks, s blocks]: True for tiles of block_t queries by block_s keys that hold an attended pair."""
        start, stop = self.ranges()
        rows = np.broadcast_to(np.arange(self.num_queries) // block_t, start.shape)
        used = start < stop
        changes = np.zeros((-(-self.num_queries // block_t), -(-self.kv_len // block_s) + 1), np.int64)
        np.add.at(changes, (rows[used], start[used] // block_s), 1)
        np.add.at(changes, (rows[used], -(-stop[used] // block_s)), -1)
        return changes.cumsum(1)[:, :-1] > 0

    def block_bounds(self, block_t: int, block_s: int) -> np.ndarray:
        """Key blocks that each block of queries must visit, as half-open ranges.

        Returns:
          int32 [t blocks, r, 2]: ascending disjoint ranges of key blocks, filled up with (0, 0). They name exactly the
          tiles of `visited_blocks`.
        """
        visited = np.pad(self.visited_blocks(block_t, block_s), ((0, 0), (1, 1))).astype(np.int8)
        bounds = [np.flatnonzero(np.diff(row)).reshape(-1, 2) for row in visited]
        result = np.zeros((len(bounds), max(1, *map(len, bounds)), 2), np.int32)
        for row, bound in zip(result, bounds):
            row[: len(bound)] = bound
        return result


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DynamicRanges:
    """Key ranges per query that are data.

    Attributes:
      start, stop: Int[*b r t]; each query attends the union of its `r` ranges, which must not overlap. Without a
        leading axis they are shared by the batch. Ends outside the keys are allowed.
      extra: Bool[*b t s], which of the keys in range are allowed (a draft tree), None for all.
    """

    start: Int[Array, "*b r t"]
    stop: Int[Array, "*b r t"]
    extra: Bool[Array, "*b t s"] | None = None

    @staticmethod
    @typechecked
    def below(length: Int[Array, "*b"] | int, num_queries: int) -> "DynamicRanges":
        """All queries attend keys 0..length-1: a cache filled up to `length`."""
        stop = jnp.asarray(length)[..., None, None] + jnp.zeros(num_queries, jnp.int32)
        return DynamicRanges(jnp.zeros_like(stop), stop)

    @staticmethod
    @typechecked
    def left_padded(
        padding: Int[Array, "*b"] | int, num_queries: int, kv_len: int, first: Int[Array, "*c"] | int = 0
    ) -> "DynamicRanges":
        """Keys before `padding` are hidden; a query among them attends itself alone, so that its output is defined.

        Args:
          padding: number of padding positions at the left, one per batch row or shared.
          num_queries, kv_len: static sizes.
          first: position of the first query, one per batch row or shared.
        """
        query = jnp.asarray(first)[..., None, None] + jnp.arange(num_queries)
        padding = jnp.asarray(padding)[..., None, None]
        return DynamicRanges(jnp.minimum(query, padding), jnp.where(query < padding, query + 1, kv_len))

    @property
    def num_queries(self) -> int:
        return self.start.shape[-1]

    def __and__(self, other: "DynamicRanges | MaskSpec") -> "DynamicRanges":
        """The keys that both allow; numbers of ranges multiply, `extra` parts are joined by and."""
        if self.num_queries != other.num_queries:
            raise ValueError(f"masks of {self.num_queries} and of {other.num_queries} queries cannot be intersected")
        if isinstance(other, MaskSpec):
            other = other.rows_at(0, other.num_queries)
        start = jnp.maximum(self.start[..., :, None, :], other.start[..., None, :, :])
        stop = jnp.minimum(self.stop[..., :, None, :], other.stop[..., None, :, :])
        shape = (*start.shape[:-3], -1, start.shape[-1])
        extra = [part for part in (self.extra, other.extra) if part is not None]
        both = extra[0] & extra[1] if len(extra) == 2 else (extra[0] if extra else None)
        return DynamicRanges(start.reshape(shape), stop.reshape(shape), both)

    __rand__ = __and__

    @typechecked
    def dense(self, kv_len: int) -> Bool[Array, "*b t s"]:
        """The mask as booleans, True where attended."""
        keys = jnp.arange(kv_len)
        allowed = ((self.start[..., None] <= keys) & (keys < self.stop[..., None])).any(-3)
        return allowed if self.extra is None else allowed & self.extra


def _blocks(lengths: Sequence[int], keys: Callable[[int, int], KeyRange]) -> MaskSpec:
    stops = list(itertools.accumulate(lengths, initial=0))
    return MaskSpec(tuple(Run(a, b, (keys(a, b),)) for a, b in itertools.pairwise(stops)), stops[-1])


def _clipped(runs: Iterable[Run], kv_len: int) -> MaskSpec:
    """A mask of runs that may be empty and whose key ranges may be empty or stick out of the keys."""
    inside = fixed(0, kv_len)
    parts = [
        intersect(run.start, run.stop, [(keys, inside) for keys in run.keys]) for run in runs if run.start < run.stop
    ]
    return MaskSpec(canonical(itertools.chain(*parts)), kv_len)
