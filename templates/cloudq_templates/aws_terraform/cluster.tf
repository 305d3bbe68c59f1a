resource "aws_ecs_cluster" "cluster" {
  count = length(var.containers) == 0 ? 0 : 1

  name = "${var.app}-${var.stage}"

  # It counts the running workers, which scaling divides the backlog by
  setting {
    name  = "containerInsights"
    value = "enabled"
  }
}
