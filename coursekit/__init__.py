"""What makes a course out of lessons; it knows nothing of the course's subject."""
