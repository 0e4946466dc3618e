"""Diagonal of a second moment after the intercept is eliminated; of disjoint rows they add up."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Squares"]

Array = npt.NDArray[np.float64]


class Squares(NamedTuple):
    """Weights, and the features' mean and scatter under them; a value, never changed.

    Attributes
    ----------
    total : ndarray of shape (c,)
        Sum of the weights, such as curvatures, in each of c columns.
    mean : ndarray of shape (d, c)
        Mean of the features, so weighted; zero without an intercept.
    scatter : ndarray of shape (d, c)
        Weighted sum of squared distances from it.
    """

    total: Array
    mean: Array
    scatter: Array

    @classmethod
    def empty(cls, d: int, c: int) -> "Squares":
        """Return those of no rows."""
        return cls(np.zeros(c), np.zeros((d, c)), np.zeros((d, c)))

    def plus(self, other: "Squares") -> "Squares":
        """Return those of the rows of both.

        What lies between the two means is a matrix of rank one, of which the diagonal is kept.
        """
        total = self.total + other.total
        share = np.divide(other.total, total, out=np.zeros_like(total), where=total > 0)
        apart = other.mean - self.mean
        scatter = self.scatter + other.scatter + self.total * share * apart**2
        return Squares(total, self.mean + share * apart, scatter)

    def times(self, factor: Any) -> "Squares":
        """Return those for weights times a factor."""
        return Squares(factor * self.total, self.mean, factor * self.scatter)

    def at(self, features: Any) -> "Squares":
        """Return those of some features."""
        return Squares(self.total, self.mean[features], self.scatter[features])

    def plus_at(self, features: Any, other: "Squares") -> "Squares":
        """Return those with rows that have entries of some features only, zero elsewhere."""
        here = self.at(features).plus(other)
        share = np.divide(
            other.total, here.total, out=np.zeros_like(here.total), where=here.total > 0
        )
        scatter = np.square(self.mean)
        scatter *= self.total * share
        scatter += self.scatter
        mean = self.mean * (1 - share)
        mean[features], scatter[features] = here.mean, here.scatter
        return Squares(here.total, mean, scatter)
