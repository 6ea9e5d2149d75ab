"""One frozen state, one jitted and donated step, one loop that can be stopped anywhere."""
