"""The algebra under `MaskSpec`: runs of queries that share a rule for their key ranges."""

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Edge(NamedTuple):
    """One end of a key range: key `offset`, or key `query + offset` where it follows the query."""

    offset: int
    follows: bool = False

    def at(self, query: int) -> int:
        return self.offset + query if self.follows else self.offset

    def renumbered(self, first: int) -> "Edge":
        """The same edge where query `first` becomes query 0."""
        return self._replace(offset=self.offset + first) if self.follows else self


KeyRange = tuple[Edge, Edge]


class Run(NamedTuple):
    """Queries start..stop-1, which share one rule: the ranges of `keys`, ascending and disjoint, none empty."""

    start: int
    stop: int
    keys: tuple[KeyRange, ...]

    def at(self, query: int) -> list[tuple[int, int]]:
        """The key ranges of one query."""
        return [(start.at(query), stop.at(query)) for start, stop in self.keys]

    def hull(self, keys: KeyRange) -> tuple[int, int]:
        """First key, and key past the last one, that any query of the run has in one of its ranges."""
        return keys[0].at(self.start), keys[1].at(self.stop - 1)


def fixed(start: int, stop: int) -> KeyRange:
    """The same keys for every query."""
    return Edge(start), Edge(stop)


def behind(distance: int) -> KeyRange:
    """The query's own position and the `distance` positions before it."""
    return Edge(-distance, follows=True), Edge(1, follows=True)


def check(runs: Sequence[Run], kv_len: int) -> None:
    """Raises ValueError for gaps between runs and for ranges that are empty, out of order or outside the keys."""
    starts = [run.start for run in runs]
    if not runs or starts != [0, *(run.stop for run in runs[:-1])] or any(run.stop <= run.start for run in runs):
        raise ValueError(f"runs must cover the queries from 0 on without gaps, got {[(r.start, r.stop) for r in runs]}")
    for run in runs:
        for query in (run.start, run.stop - 1):  # edges move linearly: what holds at both ends holds between
            ends = [end for keys in run.at(query) for end in keys]
            ascending = all(a < b if i % 2 == 0 else a <= b for i, (a, b) in enumerate(itertools.pairwise(ends)))
            if not ascending or (ends and (ends[0] < 0 or ends[-1] > kv_len)):
                raise ValueError(
                    f"key ranges of query {query} have ends {ends}; "
                    f"they must be ascending, disjoint, not empty and within 0..{kv_len}"
                )


def intersect(start: int, stop: int, pairs: Iterable[tuple[KeyRange, KeyRange]]) -> list[Run]:
    """Runs for queries start..stop-1 that attend the intersection of each pair of ranges.

    A fixed edge and one that follows the query change their order at one query. Cut there, and the order of all edges,
    hence which of them bound an intersection and whether it is empty, is the same throughout each piece.
    """
    pairs = tuple(pairs)
    edges = {edge for pair in pairs for keys in pair for edge in keys}
    meets = {a.offset - b.offset for a in edges for b in edges if b.follows and not a.follows}
    cuts = sorted({start, stop} | {q for meet in meets for q in (meet, meet + 1) if start < q < stop})
    return [Run(lo, hi, _narrowest(pairs, lo)) for lo, hi in itertools.pairwise(cuts)]


def _narrowest(pairs: Iterable[tuple[KeyRange, KeyRange]], query: int) -> tuple[KeyRange, ...]:
    """The intersections that are not empty, in the order that the edges have at `query`."""

    def place(edge: Edge) -> int:
        return edge.at(query)

    keys = [(max(a[0], b[0], key=place), min(a[1], b[1], key=place)) for a, b in pairs]
    return tuple(sorted((k for k in keys if place(k[0]) < place(k[1])), key=lambda k: place(k[0])))


def canonical(runs: Iterable[Run]) -> tuple[Run, ...]:
    """Joins ranges that touch, and neighbouring runs that one rule describes."""
    result: list[Run] = []
    for run in sorted(runs):
        run = run._replace(keys=_joined(run.keys))
        rule = _common_rule(result[-1], run) if result else None
        if rule is None:
            result.append(run)
        else:
            result[-1] = Run(result[-1].start, run.stop, rule)
    return tuple(result)


def _joined(keys: tuple[KeyRange, ...]) -> tuple[KeyRange, ...]:
    joined: list[KeyRange] = []
    for start, stop in keys:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return tuple(joined)


def _common_rule(a: Run, b: Run) -> tuple[KeyRange, ...] | None:
    for ruler, other in ((a, b), (b, a)):
        query = other.start
        single = other.stop - query == 1
        if ruler.keys == other.keys or (single and ruler.at(query) == other.at(query)):
            return ruler.keys
    return None
