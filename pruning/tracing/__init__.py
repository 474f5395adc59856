"""From one run of a network to its channel graph: nobody outside imports from what is in here, but `trace`."""
