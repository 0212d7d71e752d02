"""How a trajectory is integrated: schedules, rules, tables and the one loop."""
