# Looked up and not read: values are neither here nor in the state. A secret that is not there stops the plan.
data "aws_secretsmanager_secret" "secret" {
  for_each = var.secrets

  name = startswith(each.value, "arn:") ? null : each.value
  arn  = startswith(each.value, "arn:") ? each.value : null
}
