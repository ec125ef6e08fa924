"""The named data sets as their official archives hold them: one file a set, and how archives are read."""
