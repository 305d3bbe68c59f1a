# Bodies of messages that are too large for their queue; nothing deletes them but the rule below
resource "google_storage_bucket" "bodies" {
  count = var.bodies == null ? 0 : 1

  name                        = var.bodies.bucket
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"

  lifecycle_rule {
    action {
      type = "Delete"
    }

    condition {
      age = var.bodies.days
    }
  }

  # What the rule deletes need not come back: Google would keep it for a week more
  soft_delete_policy {
    retention_duration_seconds = 0
  }

  dynamic "encryption" {
    for_each = var.kms_key == null ? [] : [var.kms_key]

    content {
      default_kms_key_name = encryption.value
    }
  }

  depends_on = [google_project_service.api, google_kms_crypto_key_iam_member.agent]

  lifecycle {
    prevent_destroy = true # messages that wait have their bodies here
  }
}
