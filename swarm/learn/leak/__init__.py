"""What an update gives away, seen at the site before anything leaves it."""
