"""What a channel is worth: energies, criteria, and the penalties that training adds."""
