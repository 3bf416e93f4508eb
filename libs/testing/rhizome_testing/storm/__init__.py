"""Many streams at once to simulated servers, every token of which is known beforehand."""
