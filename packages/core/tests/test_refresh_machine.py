"""Whatever is done with tokens, in whatever order: what should be good is, and what should not is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from uuid import UUID

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from atriz_core.accounts import Accounts, Tokens
from atriz_core.errors import SignInError, TokenError


@dataclass
class Family:
    """A sign-in: what it has given out, and whether it goes on."""

    given: list[Tokens] = field(default_factory=list)
    goes_on: bool = True


def test_rotation_as_a_model(accounts: Accounts, add_user: Callable[..., UUID], password: str) -> None:
    """Sign-ins, refreshes, replays, sign-outs and deactivations: the accounts agree with a model of a few lines."""
    numbers = count()

    class Machine(RuleBasedStateMachine):
        families = Bundle("families")

        def __init__(self) -> None:
            super().__init__()
            self.email = f"user{next(numbers)}@example.com"
            self.user_id = add_user(self.email)
            self.is_active = True
            self.all: list[Family] = []

        @rule(target=families)
        def sign_in(self) -> Family:
            family = Family()
            self.all.append(family)
            # From somewhere else each time: a closed account that is tried six times from one place has to wait.
            number = next(numbers)
            address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
            if self.is_active:
                family.given.append(accounts.sign_in(self.email, password, address))
            else:
                family.goes_on = False
                with pytest.raises(SignInError):
                    accounts.sign_in(self.email, password, address)
            return family

        @rule(family=families)
        def refresh(self, family: Family) -> None:
            if not family.given:
                return
            if family.goes_on and self.is_active:
                family.given.append(accounts.refresh(family.given[-1].refresh))
            else:
                with pytest.raises(TokenError):
                    accounts.refresh(family.given[-1].refresh)

        @rule(family=families, which=st.integers(0, 5))
        def replay(self, family: Family, which: int) -> None:
            if which < len(family.given) - 1:
                with pytest.raises(TokenError):
                    accounts.refresh(family.given[which].refresh)
                # A closed account has nothing left that could be ended.
                family.goes_on = family.goes_on and not self.is_active

        @rule(family=families, which=st.integers(0, 5))
        def sign_out(self, family: Family, which: int) -> None:
            if which >= len(family.given):
                return
            if family.goes_on:
                accounts.sign_out(family.given[which].access)
                family.goes_on = False
            else:
                with pytest.raises(TokenError):
                    accounts.sign_out(family.given[which].access)

        @rule()
        def sign_out_everywhere(self) -> None:
            accounts.sign_out_everywhere(self.user_id)
            self._end_all()

        @rule(active=st.booleans())
        def activate(self, active: bool) -> None:
            accounts.database.execute("UPDATE users SET is_active = :on WHERE id = :id", on=active, id=self.user_id)
            if not active:
                accounts.sign_out_everywhere(self.user_id)
                self._end_all()
            self.is_active = active

        @invariant()
        def access_tokens_are_as_good_as_their_family(self) -> None:
            for family in self.all:
                for each in family.given:
                    if family.goes_on:
                        assert accounts.check(each.access).user_id == self.user_id
                    else:
                        with pytest.raises(TokenError):
                            accounts.check(each.access)

        def _end_all(self) -> None:
            for family in self.all:
                family.goes_on = False

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
        ),
    )
