"""Everything that talks to Kaggle from here."""
