# Results, progress, claims, limits, pauses: the table that cloudq's DynamoDB store asks for
resource "aws_dynamodb_table" "store" {
  count = var.store == null ? 0 : 1

  name         = var.store.resource
  billing_mode = "PAY_PER_REQUEST"
  hash_key     = "pk"
  range_key    = "sk"

  attribute {
    name = "pk"
    type = "S"
  }

  attribute {
    name = "sk"
    type = "S"
  }

  ttl {
    attribute_name = "ttl"
    enabled        = true
  }

  point_in_time_recovery {
    enabled = true
  }

  server_side_encryption {
    enabled     = var.kms_key != null
    kms_key_arn = var.kms_key
  }
}
