# These .tf files are yours: cloudq writes them once. What your code and [tool.cloudq] say is data, in cloudq.auto.tfvars.json.
terraform {
  required_version = ">= 1.9"

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = ">= 6.40, < 8.0"
    }
  }
}

provider "google" {
  project = var.project
  region  = var.region

  default_labels = merge(var.labels, { cloudq-app = var.app, cloudq-stage = var.stage })
}

# Needs cloudresourcemanager.googleapis.com before anything is planned: gcloud services enable
data "google_project" "here" {
  project_id = var.project
}

locals {
  # Google's own accounts, as which its services act in this project
  agents = {
    pubsub    = "serviceAccount:service-${data.google_project.here.number}@gcp-sa-pubsub.iam.gserviceaccount.com"
    run       = "serviceAccount:service-${data.google_project.here.number}@serverless-robot-prod.iam.gserviceaccount.com"
    firestore = "serviceAccount:service-${data.google_project.here.number}@gcp-sa-firestore.iam.gserviceaccount.com"
  }

  runs = length(var.services) + length(var.pools) > 0

  apis = toset(concat(
    ["iam.googleapis.com", "monitoring.googleapis.com", "pubsub.googleapis.com"],
    local.runs ? ["run.googleapis.com"] : [],
    length(var.secrets) == 0 ? [] : ["secretmanager.googleapis.com"],
    var.store == null ? [] : ["firestore.googleapis.com"],
    var.timer == null ? [] : ["cloudscheduler.googleapis.com", "cloudtasks.googleapis.com"],
    var.bodies == null ? [] : ["storage.googleapis.com"],
    var.kms_key == null ? [] : ["cloudkms.googleapis.com"],
  ))
}

resource "google_project_service" "api" {
  for_each = var.enable_apis ? local.apis : toset([])

  service = each.value
  # Another app of the project may need it
  disable_on_destroy = false
}
