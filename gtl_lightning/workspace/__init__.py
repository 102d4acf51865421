"""What lies in the project's folder and how it is reached: parameters, paths, cells, fitting, selection, tracking."""
