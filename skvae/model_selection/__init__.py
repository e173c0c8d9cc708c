"""Model selection: scikit-learn's grid search with the networks trained together."""

from skvae.model_selection._search import BatchedGridSearchCV

__all__ = ["BatchedGridSearchCV"]
