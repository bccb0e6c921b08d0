"""Planning: what to try next, what passed, what it would cost to relax. Pure functions over records."""
