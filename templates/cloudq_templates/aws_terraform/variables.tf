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

variable "prefix" {
  description = "What the names of queues begin with at AWS, and not in the code"
  type        = string
}

variable "region" {
  type = string
}

variable "account" {
  description = "The only account that this is applied in; null: whatever the credentials are for"
  type        = string
}

variable "python" {
  type = string
}

variable "architecture" {
  type = string
}

variable "environment" {
  type = map(string)
}

variable "secrets" {
  description = "Variables, and the name or ARN of the secret in Secrets Manager that each is to hold"
  type        = map(string)
}

variable "tags" {
  type = map(string)
}

variable "kms_key" {
  description = "ARN of the key that encrypts queues, table, logs and environments; null: AWS's own keys do"
  type        = string
}

variable "permission_boundary" {
  type = string
}

variable "subnets" {
  type = list(string)
}

variable "security_groups" {
  type = list(string)
}

variable "alarms_topic" {
  type = string
}

variable "log_retention" {
  description = "Days"
  type        = number
}

variable "queues" {
  description = "By their names in the code; times in seconds"
  type = map(object({
    resource     = string
    fifo         = bool
    retention    = number
    visibility   = number
    max_receives = number
    dead_letters = string
    existing     = optional(string)
  }))

  validation {
    condition     = alltrue([for q in values(var.queues) : q.visibility <= 43200 && q.retention >= 60 && q.retention <= 1209600])
    error_message = "SQS hides a message for 12 hours at most, and keeps it from a minute to 14 days."
  }

  validation {
    condition     = alltrue([for q in values(var.queues) : contains(keys(var.dead_letters), q.dead_letters)])
    error_message = "A queue has no dead-letter queue, and what nobody could work on would be gone."
  }
}

variable "dead_letters" {
  description = "Dead-letter queues, by their names in the code"
  type = map(object({
    resource  = string
    fifo      = bool
    retention = number
    existing  = optional(string)
  }))
}

variable "functions" {
  type = map(object({
    queue                = string
    memory               = number
    timeout              = number
    concurrency          = number
    batch_size           = number
    batch_window         = number
    max_concurrency      = optional(number)
    reserved_concurrency = optional(number)
  }))

  validation {
    condition     = alltrue([for f in values(var.functions) : f.timeout <= 900])
    error_message = "Lambda ends a function after 900 seconds; give longer tasks a container."
  }

  validation {
    condition     = alltrue([for f in values(var.functions) : try(var.queues[f.queue].visibility >= 6 * f.timeout + f.batch_window, true)])
    error_message = "A queue must hide messages for 6 times its function's timeout and the window, or they run twice."
  }

  validation {
    condition     = alltrue([for f in values(var.functions) : f.batch_size <= 10 || f.batch_window >= 1])
    error_message = "More than 10 messages at once need a batch_window of a second or more."
  }
}

variable "containers" {
  description = "Services of ECS on Fargate; memory in MB, stop in seconds"
  type = map(object({
    queue              = string
    memory             = number
    cpu                = number
    min_workers        = number
    max_workers        = number
    backlog_per_worker = number
    stop               = number
    command            = list(string)
  }))

  validation {
    condition     = length(var.containers) == 0 || var.image != null
    error_message = "Containers need an image: -var image=…, or image = \"…\" in terraform.tfvars."
  }

  validation {
    condition     = length(var.containers) == 0 || length(var.subnets) > 0
    error_message = "Containers on Fargate need subnets."
  }

  validation {
    condition     = alltrue([for c in values(var.containers) : c.min_workers <= c.max_workers && c.stop <= 120])
    error_message = "There are no more workers at least than at most, and ECS on Fargate waits for 120 seconds at most."
  }
}

variable "schedules" {
  description = "As EventBridge Scheduler keeps them; either a body, or what SendMessage is asked after the queue's URL"
  type = map(object({
    queue       = string
    expression  = string
    timezone    = string
    description = string
    body        = optional(string)
    request     = optional(string)
  }))

  validation {
    condition     = alltrue([for s in values(var.schedules) : can(regex("^(cron\\(\\S+( \\S+){5}\\)|rate\\(\\d+ (minute|hour|day)s?\\))$", s.expression))])
    error_message = "An expression is cron(six fields) or rate(number unit)."
  }

  validation {
    condition     = alltrue([for name, s in var.schedules : length(name) <= 64 && length(s.description) <= 512 && (s.body == null) != (s.request == null)])
    error_message = "A schedule has a name of up to 64 and a description of up to 512 characters, and either a body or a request."
  }
}

variable "alarms" {
  description = "Each rises when what it is on goes above a number, of seconds or messages"
  type        = map(object({ kind = string, on = string, above = number }))

  validation {
    condition     = alltrue([for a in values(var.alarms) : contains(["age", "dead-letters", "throttles", "timer-undelivered"], a.kind)])
    error_message = "The kinds of alarms are age, dead-letters, throttles and timer-undelivered."
  }
}

variable "roles" {
  description = "Who may do what; {partition}, {region} and {account} stand for those that this is applied in"
  type = map(object({
    purpose = string
    trust   = optional(string)
    statements = list(object({
      Sid       = string
      Effect    = string
      Action    = list(string)
      Resource  = list(string)
      Condition = optional(map(map(string)))
    }))
  }))
}

variable "store" {
  description = "The table; null: the app keeps nothing"
  type        = object({ resource = string })
}

variable "timer" {
  description = "The schedule group for long delays and schedules, its queue for what could not be sent, and the role that sends"
  type        = object({ resource = string, undelivered = string, role = string })
}

variable "bodies" {
  description = "The bucket for large messages, and the days after which it deletes them; the account's id is added to its name"
  type        = object({ resource = string, days = number })
}

# ---- yours: terraform.tfvars, -var, TF_VAR_…

variable "package" {
  description = "The zip with the app, cloudq-tasks and what they need"
  type        = string
  default     = "build/function.zip"
}

variable "image" {
  description = "Of the containers, with cloudq-tasks and the app; cloudq writes it where [tool.cloudq] has one"
  type        = string
  default     = null
}

variable "assign_public_ip" {
  description = "For containers in public subnets, which reach AWS by no other way"
  type        = bool
  default     = false
}
