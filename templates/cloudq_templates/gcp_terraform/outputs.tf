output "environment" {
  description = "What an application needs that calls tasks, and a person at the command line"
  value       = local.seams
}

output "accounts" {
  description = "Service accounts by role: run an application that calls tasks as producer, let people act as operator"
  value       = { for name, account in google_service_account.role : name => account.email }
}

output "topics" {
  value = local.topics
}

output "scaling" {
  description = "For what scales the worker pools: the subscription whose backlog counts, and how many workers it asks for"
  value = {
    for name, pool in var.pools : name => {
      subscription       = local.subscriptions[pool.queue]
      min_workers        = pool.workers
      max_workers        = pool.max_workers
      backlog_per_worker = pool.backlog_per_worker
    }
  }
}
