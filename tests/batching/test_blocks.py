import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from batching.blocks import BlockPool, hash_block

NUM_BLOCKS, BLOCK_SIZE = 12, 4


def chain(token_ids: list[int], salt: bytes = b"") -> list[bytes]:
    """The hashes of the full blocks."""
    hashes = [salt]
    for start in range(0, len(token_ids) - BLOCK_SIZE + 1, BLOCK_SIZE):
        hashes.append(hash_block(hashes[-1], token_ids[start : start + BLOCK_SIZE]))
    return hashes[1:]


class PoolMachine(RuleBasedStateMachine):
    """Sequences come, share what they find, publish what they fill, and go. The model remembers every block's content
    by its hash for as long as nobody has been given the block anew."""

    tables = Bundle("tables")

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS, BLOCK_SIZE)
        self.held: dict[int, list[int]] = {}  # by identity: two sequences may share all of their blocks
        self.content: dict[int, bytes] = {}

    @rule(target=tables, family=st.integers(0, 2), blocks=st.integers(1, 6), salt=st.sampled_from([b"", b"x"]))
    def start(self, family, blocks, salt):
        hashes = chain([family] * blocks * BLOCK_SIZE, salt)
        cached = self.pool.find_cached(hashes)
        assert [self.content[block] for block in cached] == hashes[: len(cached)], "found something else"
        fresh = blocks - len(cached)
        if not self.pool.can_allocate(fresh, cached):
            assert fresh + len(set(cached) - {b for table in self.held.values() for b in table}) > self.pool.num_free
            return []
        self.pool.share(cached)
        table = cached + self._allocate(fresh)
        self.held[id(table)] = table
        for block, block_hash in zip(table, hashes, strict=True):
            known = block_hash in self.content.values()
            self.pool.publish(block, block_hash)
            if not known:
                self.content[block] = block_hash
        return table

    @rule(table=tables, count=st.integers(1, 3))
    def grow(self, table, count):
        if id(table) in self.held and self.pool.can_allocate(count):
            table.extend(self._allocate(count))

    @rule(table=consumes(tables))
    def release(self, table):
        if self.held.pop(id(table), None) is not None:
            self.pool.release(table)

    def _allocate(self, count: int) -> list[int]:
        blocks = self.pool.allocate(count)
        taken = {block for table in self.held.values() for block in table}
        assert not taken & set(blocks), "given away although it is in use"
        for block in blocks:
            self.content.pop(block, None)
        return blocks

    @invariant()
    def accounts_agree(self):
        self.pool.check_integrity(self.held.values())
        used = {block for table in self.held.values() for block in table}
        assert (self.pool.num_used, self.pool.num_free) == (len(used), NUM_BLOCKS - len(used))
        for block, block_hash in self.content.items():
            assert self.pool.find_cached([block_hash]) == [block], "forgotten although nobody needed the space"


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


def filled(pool: BlockPool, token_ids: list[int]) -> list[int]:
    """A released table whose content can be found."""
    hashes = chain(token_ids)
    table = pool.allocate(len(hashes))
    for block, block_hash in zip(table, hashes, strict=True):
        pool.publish(block, block_hash)
    pool.release(table)
    return table


def test_the_least_recently_used_prefix_goes_first_and_its_tail_before_its_head():
    pool = BlockPool(4, BLOCK_SIZE)
    old, new = filled(pool, [1] * 8), filled(pool, [2] * 8)
    again = pool.find_cached(chain([1] * 8))
    pool.share(again)
    pool.release(again)  # used: now the other one is older
    assert pool.allocate(1) == [new[1]]
    assert pool.find_cached(chain([2] * 8)) == [new[0]]
    assert pool.allocate(1) == [new[0]]
    assert pool.allocate(1) == [old[1]]


def test_space_that_holds_nothing_goes_before_any_prefix():
    pool = BlockPool(4, BLOCK_SIZE)
    nameless = pool.allocate(2)
    kept = filled(pool, [1] * 8)
    pool.release(nameless)
    assert set(pool.allocate(2)) == set(nameless)
    assert pool.find_cached(chain([1] * 8)) == kept


def test_can_allocate_counts_shared_blocks_that_are_free():
    pool = BlockPool(4, BLOCK_SIZE)
    cached = filled(pool, [1] * 8)
    assert pool.can_allocate(2, cached)
    assert not pool.can_allocate(3, cached)
    pool.share(cached)
    assert pool.can_allocate(2, cached)


def test_equal_content_keeps_its_first_block():
    pool = BlockPool(4, BLOCK_SIZE)
    first, second = pool.allocate(1), pool.allocate(1)
    (name,) = chain([1] * 4)
    pool.publish(first[0], name)
    pool.publish(second[0], name)
    assert pool.find_cached([name]) == first
    pool.release(second)
    pool.check_integrity([first])


def test_a_gap_ends_the_prefix():
    pool = BlockPool(4, BLOCK_SIZE)
    table = filled(pool, [1] * 12)
    hashes = chain([1] * 12)
    assert pool.find_cached([hashes[0], b"unknown", hashes[2]]) == table[:1]


@given(st.binary(max_size=100), st.binary(max_size=100), st.lists(st.integers(0, 2**31), min_size=4, max_size=4))
def test_salts_separate(one, other, token_ids):
    assert (hash_block(one, token_ids) == hash_block(other, token_ids)) == (one == other)


def test_a_hash_names_everything_before_the_block():
    assert chain([1] * 4 + [3] * 4)[1] != chain([2] * 4 + [3] * 4)[1]
    assert chain([1] * 8)[0] != chain([1] * 8)[1]


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (4, 1), (5, 2)])
def test_blocks_for(tokens, blocks):
    assert BlockPool(4, BLOCK_SIZE).blocks_for(tokens) == blocks
