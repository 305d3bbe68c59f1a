# ---- written by cloudq

variable "app" {
  type = string
}

variable "stage" {
  type = string
}

variable "reference" {
  description = "module:attribute of the app"
  type        = string
}

variable "project" {
  type = string
}

variable "region" {
  description = "Of what runs, of the timer, and of what is kept"
  type        = string
}

variable "prefix" {
  description = "What the names of queues begin with at Google, and not in the code"
  type        = string
}

variable "image" {
  description = "For linux/amd64, with the app, cloudq-tasks[gcp,cli] and uvicorn; by its digest, a rollback is one. -var image=… goes before the data"
  type        = string

  validation {
    condition     = var.image != null || length(var.services) + length(var.pools) == 0
    error_message = "What runs tasks needs an image: set image under [tool.cloudq], or give -var image=…."
  }
}

variable "environment" {
  type = map(string)
}

variable "secrets" {
  description = "Variable to the name of a secret in Secret Manager, never its value"
  type        = map(string)
}

variable "labels" {
  type = map(string)

  validation {
    condition     = alltrue([for key, value in var.labels : can(regex("^[a-z][a-z0-9_-]{0,62}$", key)) && can(regex("^[a-z0-9_-]{0,63}$", value))])
    error_message = "A label's key and value have up to 63 lower-case letters, digits, _ and -; a key begins with a letter."
  }
}

variable "kms_key" {
  description = "projects/P/locations/L/keyRings/R/cryptoKeys/K, in the app's region: it encrypts topics, database, bucket and what runs; null: Google's own keys do"
  type        = string
}

variable "network" {
  description = "VPC that services and workers reach private addresses through; null: none"
  type        = string
}

variable "subnetwork" {
  type = string
}

variable "notification_channel" {
  description = "projects/P/notificationChannels/N; null: alarms are there and tell nobody"
  type        = string
}

variable "queues" {
  description = "By their names in the code; times in seconds. A queue is a topic and the subscription of its name"
  type = map(object({
    resource       = string
    ordered        = bool
    retention      = number
    ack_deadline   = number
    max_deliveries = number
    dead_letters   = string
    existing       = optional(string)
    subscribed     = bool
  }))

  validation {
    condition     = alltrue([for queue in values(var.queues) : queue.ack_deadline >= 10 && queue.ack_deadline <= 600])
    error_message = "Pub/Sub's ack deadlines are 10 to 600 seconds."
  }

  validation {
    condition     = alltrue([for queue in values(var.queues) : queue.retention >= 600 && queue.retention <= 2678400])
    error_message = "Pub/Sub keeps messages for 10 minutes to 31 days."
  }

  validation {
    condition     = alltrue([for queue in values(var.queues) : queue.max_deliveries >= 5 && queue.max_deliveries <= 100])
    error_message = "Pub/Sub gives a message up after 5 to 100 deliveries."
  }

  validation {
    condition     = alltrue([for queue in values(var.queues) : contains(keys(var.dead_letters), queue.dead_letters)])
    error_message = "Each queue needs its dead letters in dead_letters."
  }
}

variable "dead_letters" {
  description = "Dead-letter queues, by their names in the code. One that exists has its subscription already, of the topic's name"
  type = map(object({
    resource  = string
    retention = number
    existing  = optional(string)
  }))
}

variable "services" {
  description = "Cloud Run services that a queue is pushed to; MB, whole vCPUs, seconds, messages at once"
  type = map(object({
    queue         = string
    memory        = number
    cpu           = number
    timeout       = number
    concurrency   = number
    max_instances = optional(number)
  }))

  validation {
    condition     = alltrue([for service in values(var.services) : try(service.timeout <= var.queues[service.queue].ack_deadline, true)])
    error_message = "A service must answer within its queue's ack deadline, 600 seconds at most; give longer tasks a container, which renews its lease."
  }

  validation {
    condition     = alltrue([for service in values(var.services) : try(var.queues[service.queue].subscribed, true)])
    error_message = "What is pushed needs a subscription."
  }
}

variable "pools" {
  description = "Cloud Run worker pools that pull from a queue: workers of them, MB, whole vCPUs, tasks at once in each"
  type = map(object({
    queue              = string
    memory             = number
    cpu                = number
    concurrency        = number
    workers            = number
    max_workers        = number
    backlog_per_worker = number
  }))
}

variable "accounts" {
  description = "The id of the service account of each role, and of pub/sub, which pushes"
  type        = map(string)

  validation {
    condition     = alltrue([for id in values(var.accounts) : can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", id))]) && length(distinct(values(var.accounts))) == length(var.accounts)
    error_message = "The ids of service accounts are 6 to 30 lower-case letters, digits and -, a letter first, and all different."
  }
}

variable "pods" {
  description = "Roles that are pods of Kubernetes: namespace/name of their Kubernetes service accounts"
  type        = map(string)
}

variable "grants" {
  description = "Who may do what on which single thing, by its name in the code"
  type = object({
    topics                    = list(object({ on = string, account = string, role = string }))
    subscriptions             = list(object({ on = string, account = string, role = string }))
    dead_letter_topics        = list(object({ on = string, account = string, role = string }))
    dead_letter_subscriptions = list(object({ on = string, account = string, role = string }))
    store                     = list(object({ on = string, account = string, role = string }))
    bodies                    = list(object({ on = string, account = string, role = string }))
    timer                     = list(object({ on = string, account = string, role = string }))
    accounts                  = list(object({ on = string, account = string, role = string }))
    services                  = list(object({ on = string, account = string, role = string }))
    secrets                   = list(object({ on = string, account = string, role = string }))
    project                   = list(object({ on = string, account = string, role = string }))
  })
}

variable "schedules" {
  description = "Jobs of Cloud Scheduler: five fields of cron and a time zone. By its description `cloudq schedule` knows a job; leave it"
  type = map(object({
    queue       = string
    expression  = string
    timezone    = string
    description = string
    body        = string
  }))

  validation {
    condition     = alltrue([for schedule in values(var.schedules) : can(regex("^\\S+ \\S+ \\S+ \\S+ \\S+$", schedule.expression))])
    error_message = "Cloud Scheduler reads five fields of cron."
  }

  validation {
    condition     = alltrue([for schedule in values(var.schedules) : length(schedule.description) <= 500])
    error_message = "Cloud Scheduler takes descriptions of up to 500 characters."
  }
}

variable "store" {
  description = "The database and its collection; null: the app keeps nothing"
  type        = object({ database = string, collection = string })
}

variable "timer" {
  description = "The Cloud Tasks queue for long delays; null: nothing waits for longer than the broker lets it"
  type        = object({ resource = string })
}

variable "bodies" {
  description = "The bucket for large messages, and the days after which it deletes them"
  type        = object({ bucket = string, days = number })
}

variable "alarms" {
  type = map(object({ kind = string, on = string, above = number }))

  validation {
    condition     = alltrue([for alarm in values(var.alarms) : contains(["age", "dead-letters", "throttles", "timer-depth"], alarm.kind)])
    error_message = "An alarm is one of age, dead-letters, throttles, timer-depth."
  }
}

# ---- yours: terraform.tfvars, -var, TF_VAR_…

variable "enable_apis" {
  description = "false where somebody else turns the project's APIs on"
  type        = bool
  default     = true
}

variable "workload_pool" {
  description = "Of the cluster whose pods work here; null: PROJECT.svc.id.goog, which a cluster of this project has"
  type        = string
  default     = null
}
