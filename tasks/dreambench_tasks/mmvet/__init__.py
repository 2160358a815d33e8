"""MM-Vet: 218 open questions about images, each needing several of six capabilities, graded from 0 to 1 by a judge."""
