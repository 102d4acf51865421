-- Run once, by the image, when the volume is empty: one database for each server.
CREATE DATABASE prefect;
CREATE DATABASE mlflow;
