import numpy as np

from redif_env.envs.draws import GroupDraws


def rows(*chosen, size=4):
    mask = np.zeros(size, dtype=np.bool_)
    mask[list(chosen)] = True
    return mask


def seeded(seed=0, group_size=2, priced=False):
    draws = GroupDraws(4, group_size, 1000, priced)
    draws.seed([seed + index for index in range(4)], rows(0, 1, 2, 3))
    return draws


def test_group_draws_again_after_all_members_used_the_draw():
    draws = seeded()
    first = draws.next(rows(0, 1, 2, 3))[0]
    assert first[0] == first[1]
    assert first[2] == first[3]
    again = draws.next(rows(0))[0]
    assert again[0] == first[0]
    assert draws.next(rows(0))[0][0] == first[0]
    later = draws.next(rows(1))[0]
    assert later[1] != first[1]
    assert draws.next(rows(0))[0][0] == later[1]


def test_seed_of_a_group_is_that_of_its_first_member():
    """Groups of two seeded with 0 to 3 draw what single environments seeded with 0 and 2 draw."""
    alone = seeded(group_size=1).next(rows(0, 1, 2, 3))[0]
    grouped = seeded().next(rows(0, 1, 2, 3))[0]
    assert grouped.tolist() == [alone[0], alone[0], alone[2], alone[2]]


def test_prices_do_not_change_the_first_pairs_and_lie_in_the_unit_interval():
    pair, dial = seeded(priced=True).next(rows(0, 1, 2, 3))
    assert pair.tolist() == seeded().next(rows(0, 1, 2, 3))[0].tolist()
    assert ((dial > 0) & (dial < 1)).all()
    assert dial[0] == dial[1]
    assert seeded().next(rows(0))[1].tolist() == [0, 0, 0, 0]


def test_seeding_again_repeats_the_draws():
    draws = seeded()
    first = [draws.next(rows(0, 1, 2, 3))[0].tolist() for _ in range(3)]
    draws.seed([0, 1, 2, 3], rows(0, 1, 2, 3))
    assert [draws.next(rows(0, 1, 2, 3))[0].tolist() for _ in range(3)] == first
