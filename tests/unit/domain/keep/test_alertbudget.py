from crashd.domain.keep.alertbudget import HOUR_SECONDS, OWNERS_MAX, AlertBudget, AlertRates

RATES = AlertRates(per_owner=20, per_signature=5)


def take(
    budget: AlertBudget, count: int, owner: str, kind: str = "loop", now: float = 5000.0
) -> int:
    """Ask so often; return how often it went out."""
    return sum(budget.take(RATES, owner, kind, now) for _ in range(count))


def test_sec_84_loop_of_one_program_mutes_no_other() -> None:
    budget = AlertBudget()
    assert take(budget, 500, "1000") == RATES.per_signature
    assert take(budget, 1, "1000", "other") == 1
    assert take(budget, 1, "0") == 1


def test_sec_84_first_of_a_kind_goes_out_after_many_repeats() -> None:
    budget = AlertBudget()
    repeated = sum(take(budget, 500, "1000", f"loop{n}") for n in range(4))
    assert repeated <= RATES.per_owner // 2 + 4
    assert take(budget, 1, "1000", "new") == 1


def test_sec_84_new_kinds_without_end_are_bounded_and_mute_nobody_else() -> None:
    budget = AlertBudget()
    assert sum(take(budget, 1, "1000", f"{n}") for n in range(500)) == RATES.per_owner
    assert take(budget, 1, "1001", "x") == 1


def test_sec_84_many_users_are_bounded_and_mute_neither_one_more_nor_the_system() -> None:
    budget = AlertBudget()
    sent = sum(take(budget, 1, f"{uid}", f"{n}") for uid in range(2000, 2100) for n in range(20))
    assert sent <= 2 * OWNERS_MAX * RATES.per_owner
    assert take(budget, 1, "1000", "x") == 1, "one who had none"
    assert take(budget, 1, "0", "x") == 1
    assert take(budget, 1, "33", "x") == 1


def test_sec_84_roots_containers_are_not_the_system() -> None:
    budget = AlertBudget()
    for container in range(500):
        take(budget, 20, f"0@{container}", "x")
    assert take(budget, 1, "0", "x") == 1


def test_take_begins_again_after_an_hour() -> None:
    budget = AlertBudget()
    take(budget, 500, "1000")
    assert take(budget, 500, "1000", now=5001 + HOUR_SECONDS) == RATES.per_signature


def test_take_none_where_none_are_allowed() -> None:
    assert not AlertBudget().take(AlertRates(0, 5), "0", "x", 1.0)
    assert AlertBudget().take(AlertRates(1, 5), "0", "x", 1.0)
