"""What makes notebooks out of lessons, grades exercises and keeps claims. Nothing below this folder imports it."""
