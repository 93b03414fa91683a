"""Records and metrics -> charts, the HTML page, TensorBoard, the terminal table."""
