"""Why a process crashed: facts, explanation, title, signature."""
