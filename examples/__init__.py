"""Two small trained checkpoints, the script that trains them, and the data that measure them."""
