"""The whole farm in one loop: real cores and sessions, everything else modelled, faults drawn from a seed. See docs/simulation.md."""
