"""One experiment, four answers: each site alone, all rows in one place, a fixed server, and the swarm."""
