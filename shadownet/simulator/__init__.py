"""What a protected model would cost on a device: exact counts times the parameters of a device's profile."""
