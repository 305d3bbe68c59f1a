"""What happens inside one Lambda function: its time, its tasks, its batches."""
