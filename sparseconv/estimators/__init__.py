"""aeon and scikit-learn estimators."""
