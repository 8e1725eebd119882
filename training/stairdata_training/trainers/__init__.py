"""What stands between our trainings and TRL's trainers."""
