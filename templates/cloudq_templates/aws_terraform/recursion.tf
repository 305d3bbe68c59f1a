# Tasks retry and call tasks: after 16 rounds of one chain Lambda would take that for a loop, and drop the message
resource "aws_lambda_function_recursion_config" "function" {
  for_each = var.functions

  function_name  = aws_lambda_function.function[each.key].function_name
  recursive_loop = "Allow"
}
