# Made here and not by ECS, so that retention, key and deletion are ours
resource "aws_cloudwatch_log_group" "container" {
  for_each = var.containers

  name              = "/ecs/${each.key}"
  retention_in_days = var.log_retention
  kms_key_id        = var.kms_key
}

resource "aws_ecs_task_definition" "worker" {
  for_each = var.containers

  family                   = each.key
  requires_compatibilities = ["FARGATE"]
  network_mode             = "awsvpc"
  cpu                      = floor(each.value.cpu * 1024)
  memory                   = each.value.memory
  # The version before stays, which one that does not come up is taken back to
  skip_destroy = true
  # What starts the container reads its image, writes its logs and reads its secrets; what runs in it may do none of these
  execution_role_arn = aws_iam_role.role["execution"].arn
  task_role_arn      = aws_iam_role.role[each.key].arn

  runtime_platform {
    operating_system_family = "LINUX"
    cpu_architecture        = var.architecture == "arm64" ? "ARM64" : "X86_64"
  }

  container_definitions = jsonencode([{
    name        = "worker"
    image       = var.image
    essential   = true
    entryPoint  = ["cloudq"]
    command     = each.value.command
    environment = [for name, value in merge(var.environment, local.seams, { CLOUDQ_APP = var.reference }) : { name = name, value = value }]
    secrets     = [for name, secret in data.aws_secretsmanager_secret.secret : { name = name, valueFrom = secret.arn }]
    # Between SIGTERM and the end, for tasks to finish; what is left is given back to the queue
    stopTimeout = each.value.stop

    # Nothing is written but what tasks put into /tmp, which is of the container's memory and gone with it
    readonlyRootFilesystem = true
    linuxParameters = {
      initProcessEnabled = true
      capabilities       = { drop = ["ALL"] }
      tmpfs              = [{ containerPath = "/tmp", size = floor(each.value.memory / 4) }]
    }

    # The worker touches the file while its receives are answered, however long its tasks take
    healthCheck = {
      command     = ["CMD-SHELL", "test -n \"$(find /tmp/alive -mmin -1)\""]
      interval    = 30
      timeout     = 5
      retries     = 3
      startPeriod = 120
    }

    logConfiguration = {
      logDriver = "awslogs"
      options = {
        awslogs-group         = aws_cloudwatch_log_group.container[each.key].name
        awslogs-region        = local.region
        awslogs-stream-prefix = "worker"
        # A slow CloudWatch holds up no task
        mode            = "non-blocking"
        max-buffer-size = "25m"
      }
    }
  }])
}

resource "aws_ecs_service" "worker" {
  for_each = var.containers

  name            = each.key
  cluster         = aws_ecs_cluster.cluster[0].arn
  task_definition = aws_ecs_task_definition.worker[each.key].arn
  launch_type     = "FARGATE"
  desired_count   = each.value.min_workers
  propagate_tags  = "SERVICE"

  # New workers first, then the old ones stop: a deployment never leaves the queue alone
  deployment_minimum_healthy_percent = 100
  deployment_maximum_percent         = 200

  # A version that does not come up is taken back
  deployment_circuit_breaker {
    enable   = true
    rollback = true
  }

  network_configuration {
    subnets          = var.subnets
    security_groups  = var.security_groups
    assign_public_ip = var.assign_public_ip
  }

  lifecycle {
    ignore_changes = [desired_count] # the backlog's to say
  }

  # Without its permissions a worker that starts is refused
  depends_on = [aws_iam_role_policy.role]
}
