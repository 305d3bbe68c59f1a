locals {
  # A name that only this service's tokens have: its own address is not known before it is there
  audiences = { for name, _ in var.services : name => "https://${name}.${var.project}.cloudq" }

  broker = "pubsub://${var.project}/?prefix=${urlencode(var.prefix)}${var.bodies == null ? "" : "&bodies=gs://${google_storage_bucket.bodies[0].name}&bodies_days=${var.bodies.days}"}"

  seams = merge(
    { CLOUDQ_BROKER = local.broker },
    var.store == null ? {} : {
      CLOUDQ_STORE = "firestore://${var.project}/${var.store.collection}?database=${google_firestore_database.store[0].name}"
    },
    var.timer == null ? {} : {
      CLOUDQ_TIMER = "cloudtasks://${var.project}/${var.region}/${google_cloud_tasks_queue.timer[0].name}?service_account=${google_service_account.role["scheduler"].email}"
    },
  )

  host = merge(var.environment, local.seams, { CLOUDQ_APP = var.reference })
}

# What a queue is pushed to: as many instances as there is work, none without. Logs go where the project's do, for as long.
resource "google_cloud_run_v2_service" "service" {
  for_each = var.services

  name        = each.key
  location    = var.region
  description = "Tasks of the queue ${var.queues[each.value.queue].resource}"
  # Pub/Sub of the same project is inside, and nobody else has business here
  ingress          = "INGRESS_TRAFFIC_INTERNAL_ONLY"
  custom_audiences = [local.audiences[each.key]]
  # It keeps nothing
  deletion_protection = false

  template {
    service_account                  = google_service_account.role[each.key].email
    timeout                          = "${each.value.timeout}s"
    max_instance_request_concurrency = each.value.concurrency
    encryption_key                   = var.kms_key
    execution_environment            = "EXECUTION_ENVIRONMENT_GEN2"

    scaling {
      max_instance_count = each.value.max_instances
    }

    containers {
      image   = var.image
      command = ["uvicorn"]
      args    = ["cloudq_gcp.entry:app", "--host", "0.0.0.0", "--port", "8080"]

      ports {
        container_port = 8080
      }

      resources {
        limits = {
          cpu    = tostring(each.value.cpu)
          memory = "${each.value.memory}Mi"
        }
        # Nothing is under way once a message is answered
        cpu_idle          = true
        startup_cpu_boost = true
      }

      dynamic "env" {
        for_each = merge(local.host, {
          CLOUDQ_CONCURRENCY          = tostring(each.value.concurrency)
          CLOUDQ_ACK_DEADLINE         = tostring(each.value.timeout)
          CLOUDQ_PUSH_AUDIENCE        = local.audiences[each.key]
          CLOUDQ_PUSH_SERVICE_ACCOUNT = google_service_account.role["pub/sub"].email
          # Cloud Run lets nobody in but who may invoke it, and takes the signature off the token that it has verified
          CLOUDQ_PUSH_BEHIND_IAM = "1"
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

  # Without them the first revision does not start
  depends_on = [google_project_service.api, google_secret_manager_secret_iam_member.grant, google_kms_crypto_key_iam_member.agent]
}
