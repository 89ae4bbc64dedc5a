"""All laws of strategies, and :func:`check_select`, which checks a strategy against them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tokengraph.kinds import explains
from tokengraph.select.base import Select, resolve
from tokengraph.testing import choice_laws, map_laws, padding_laws
from tokengraph.testing.hold import hold

SELECT_LAWS: list[Callable[[Select], None]] = [
    choice_laws.keeps_the_budget,
    choice_laws.keeps_all_when_asked,
    choice_laws.refuses_an_empty_budget,
    choice_laws.conserves_mass,
    choice_laws.lifts_back,
    map_laws.composes,
    map_laws.connects,
    map_laws.has_exact_gradients,
    choice_laws.treats_images_alone,
    padding_laws.takes_padding,
    padding_laws.ragged_equals_fixed,
    choice_laws.repeats_itself,
    choice_laws.survives_corner_cases,
    choice_laws.keeps_the_dtype,
    choice_laws.ignores_autocast,
    choice_laws.lets_gradients_through,
    choice_laws.compiles_whole,
]


@explains
def check_select(select: str | type[Select] | Select, *, without: Sequence[str] = ()) -> None:
    """Checks a strategy against all laws.

    Args:
        select: The strategy, by name, class or instance.
        without: Names of laws to leave out, such as ``"compiles_whole"``.

    Raises:
        AssertionError: If a law is broken or raises any other error; the message names the first such law.
        ValueError: If ``without`` names a law that does not exist.

    Cost: many calls of the strategy, and one compilation.

    Example:
        >>> from tokengraph import ToMe
        >>> check_select(ToMe(), without=["compiles_whole"])
    """
    one = resolve(select)
    hold(SELECT_LAWS, one, str(one), without)
