"""What a person reads at the end: tables, verdict, contact sheet."""
