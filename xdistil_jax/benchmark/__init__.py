"""How fast a student is that was exported, beside its teacher, in every runtime that is here."""
