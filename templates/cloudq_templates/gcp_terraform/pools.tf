# Workers that pull. A pool has as many instances as it is told: Google's own scaling there looks at the CPU, not at the backlog. What scales
# it by the backlog (Cloud Run External Metrics Autoscaling, or a job of yours with `gcloud run worker-pools update --instances`) finds its
# numbers in the output `scaling`; have it ignored below then, or each apply takes its count back.
resource "google_cloud_run_v2_worker_pool" "pool" {
  for_each = var.pools

  name        = each.key
  location    = var.region
  description = "Tasks of the queue ${var.queues[each.value.queue].resource}"
  # It keeps nothing
  deletion_protection = false

  scaling {
    manual_instance_count = each.value.workers
  }

  template {
    service_account = google_service_account.role[each.key].email
    encryption_key  = var.kms_key

    containers {
      image   = var.image
      command = ["cloudq"]
      # Cloud Run leaves 10 seconds after SIGTERM: what does not end by then begins anew elsewhere
      args = ["worker", "--queues", each.value.queue, "--concurrency", tostring(each.value.concurrency), "--grace", "8s"]

      resources {
        limits = {
          cpu    = tostring(each.value.cpu)
          memory = "${each.value.memory}Mi"
        }
      }

      dynamic "env" {
        for_each = merge(local.host, {
          # A pull is heard out before the end, and a lease that is the subscription's own costs no request
          CLOUDQ_BROKER = "${local.broker}&wait=5&lease=${var.queues[each.value.queue].ack_deadline}"
        })

        content {
          name  = env.key
          value = env.value
        }
      }

      dynamic "env" {
        for_each = var.secrets

        content {
          name = env.key

          value_source {
            secret_key_ref {
              secret  = env.value
              version = "latest"
            }
          }
        }
      }
    }

    dynamic "vpc_access" {
      for_each = var.network == null && var.subnetwork == null ? [] : [true]

      content {
        egress = "PRIVATE_RANGES_ONLY"

        network_interfaces {
          network    = var.network
          subnetwork = var.subnetwork
        }
      }
    }
  }

  lifecycle {
    ignore_changes = [] # [scaling[0].manual_instance_count] where something else scales it
  }

  # A worker that finds no queue when it starts says so, and ends
  depends_on = [
    google_project_service.api,
    google_secret_manager_secret_iam_member.grant,
    google_kms_crypto_key_iam_member.agent,
    google_pubsub_subscription_iam_member.grant,
  ]
}
