# Bodies of messages that are too large for their queue; nothing deletes them but the rule below
resource "aws_s3_bucket" "bodies" {
  count = var.bodies == null ? 0 : 1

  bucket = local.bucket

  lifecycle {
    prevent_destroy = true # messages that wait have their bodies here
  }
}

resource "aws_s3_bucket_public_access_block" "bodies" {
  count = length(aws_s3_bucket.bodies)

  bucket                  = aws_s3_bucket.bodies[0].id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_server_side_encryption_configuration" "bodies" {
  count = length(aws_s3_bucket.bodies)

  bucket = aws_s3_bucket.bodies[0].id

  rule {
    bucket_key_enabled = var.kms_key != null

    apply_server_side_encryption_by_default {
      sse_algorithm     = var.kms_key == null ? "AES256" : "aws:kms"
      kms_master_key_id = var.kms_key
    }
  }
}

resource "aws_s3_bucket_lifecycle_configuration" "bodies" {
  count = length(aws_s3_bucket.bodies)

  bucket = aws_s3_bucket.bodies[0].id

  rule {
    id     = "messages-are-gone-by-then"
    status = "Enabled"

    filter {}

    expiration {
      days = var.bodies.days
    }

    abort_incomplete_multipart_upload {
      days_after_initiation = 1
    }
  }
}

data "aws_iam_policy_document" "bodies" {
  count = length(aws_s3_bucket.bodies)

  statement {
    sid       = "OnlyByTls"
    effect    = "Deny"
    actions   = ["s3:*"]
    resources = [aws_s3_bucket.bodies[0].arn, "${aws_s3_bucket.bodies[0].arn}/*"]

    principals {
      type        = "*"
      identifiers = ["*"]
    }

    condition {
      test     = "Bool"
      variable = "aws:SecureTransport"
      values   = ["false"]
    }
  }
}

resource "aws_s3_bucket_policy" "bodies" {
  count = length(aws_s3_bucket.bodies)

  bucket = aws_s3_bucket.bodies[0].id
  policy = data.aws_iam_policy_document.bodies[0].json
}
