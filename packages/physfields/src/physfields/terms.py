"""A row of the table of residuals: a law with its units, what it reads, and how far it reaches."""

from collections.abc import Callable
from dataclasses import dataclass

from physfields.balance import Balance, State
from physfields.grid import Grid

__all__ = ["Term"]


@dataclass(frozen=True)
class Term:
    """One row: its law, its units, the slots it reads (and may read), the axes along which its node stencils reach."""

    number: int
    category: str
    name: str
    family: str
    reads: tuple[str, ...]
    optional: tuple[str, ...]
    units: str
    time: bool
    space: bool
    reference: str
    function: Callable[[State], Balance]

    @classmethod
    def of(
        cls,
        function: Callable[[State], Balance],
        category: str,
        *,
        reads: str,
        units: str,
        reference: str,
        family: str = "pde_anchor",
        reach: str = "ts",
        number: int = 0,
    ) -> "Term":
        """Make a row of a law: its name is the function's. `reads` are slots, optional ones behind a bar; `reach` has
        "t" and "s" where its node stencils reach along time and space.

        >>> from physfields import waves
        >>> Term.of(waves.propagation, "wave", reads="wave | source", units="wave / time^2", reference="1747").optional
        ('source',)
        """
        needed, _, optional = reads.partition("|")
        return cls(
            number,
            category,
            function.__name__,
            family,
            tuple(needed.split()),
            tuple(optional.split()),
            units,
            "t" in reach,
            "s" in reach,
            reference,
            function,
        )

    @property
    def key(self) -> str:
        """Its unique name, `category.name`."""
        return f"{self.category}.{self.name}"

    @property
    def equation(self) -> str:
        """The law in one line."""
        return (self.function.__doc__ or "").split("\n", 1)[0]

    def axes(self, grid: Grid) -> tuple[str, ...]:
        """The axes along which its node stencils reach."""
        return (("t",) if self.time else ()) + (grid.space if self.space else ())
