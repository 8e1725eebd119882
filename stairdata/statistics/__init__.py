"""What scores of prompts show, and how surely: means, differences, and how far a judge agrees with people."""
