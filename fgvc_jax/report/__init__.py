"""Read by a person at the end of a run: tables, the verdict, single classes, a contact sheet."""
