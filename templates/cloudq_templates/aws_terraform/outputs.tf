output "environment" {
  description = "What an application needs that calls tasks, and a person at the command line"
  value       = local.seams
}

output "policies" {
  description = "Policies to attach: producer, operator"
  value       = { for name, policy in aws_iam_policy.offered : name => policy.arn }
}

output "queues" {
  value = local.queue_arns
}
