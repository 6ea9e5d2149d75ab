"""What a run needs on machines that are not there: compiled programs read, chips and topologies, bounds."""
