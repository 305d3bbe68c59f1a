locals {
  # Least privilege, from what each host's drivers do; only the place is put in here
  documents = {
    for name, role in var.roles : name => {
      for kind, text in {
        policy = jsonencode({
          Version   = "2012-10-17"
          Statement = [for statement in role.statements : { for key, value in statement : key => value if value != null }]
        })
        trust = role.trust
      } : kind => text == null ? null : replace(replace(replace(text, "{partition}", local.partition), "{region}", local.region), "{account}", local.account)
    }
  }

  assumed = { for name, role in var.roles : name => role if role.trust != null }
  offered = { for name, role in var.roles : name => role if role.trust == null }

  role_names = {
    for name, role in var.roles : name => lookup({
      scheduler = try(var.timer.role, "")
      execution = "${var.app}-${var.stage}-execution"
    }, role.purpose, name)
  }
}

# What runs tasks, what starts containers, and what EventBridge Scheduler sends as
resource "aws_iam_role" "role" {
  for_each = local.assumed

  name                 = local.role_names[each.key]
  assume_role_policy   = local.documents[each.key].trust
  permissions_boundary = var.permission_boundary
}

resource "aws_iam_role_policy" "role" {
  for_each = local.assumed

  name   = "cloudq"
  role   = aws_iam_role.role[each.key].id
  policy = local.documents[each.key].policy
}

# For what is not deployed here: attach "producer" to an application that calls tasks, "operator" to people
resource "aws_iam_policy" "offered" {
  for_each = local.offered

  name   = "${var.app}-${var.stage}-${each.key}"
  policy = local.documents[each.key].policy
}
