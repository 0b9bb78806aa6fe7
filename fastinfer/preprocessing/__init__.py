"""The readable side of the feature program: its spec, its import from scikit-learn, its certificate."""
